_base_ = "_base_/rar.py"

dataset = dict(type="imagenet", root="data")
