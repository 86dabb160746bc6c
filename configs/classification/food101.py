_base_ = "_base_/rar.py"

dataset = dict(type="food101", root="data")
