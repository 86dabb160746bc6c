_base_ = "_base_/rar.py"

dataset = dict(type="eurosat", root="data")
