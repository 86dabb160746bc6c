_base_ = "_base_/rar.py"

dataset = dict(type="ucf101", root="data")
