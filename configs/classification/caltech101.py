_base_ = "_base_/rar.py"

dataset = dict(type="caltech101", root="data")
