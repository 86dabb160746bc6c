_base_ = "_base_/rar.py"

dataset = dict(type="cub200", root="data")
