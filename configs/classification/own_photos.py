# Your own photos: photos/train/CLASS/*.jpg and photos/test/CLASS/*.jpg, folders named as you would say the class.
# A table instead: dict(type="csv", file="table.csv", photos="photos") with the columns path, class and split.
_base_ = "_base_/rar.py"

dataset = dict(type="folders", root="photos")
