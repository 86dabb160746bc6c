_base_ = "_base_/rar.py"

dataset = dict(type="stanford_cars", root="data")
