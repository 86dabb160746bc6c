_base_ = "_base_/rar.py"

dataset = dict(type="sun397", root="data")
