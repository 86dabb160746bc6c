_base_ = "_base_/rar.py"

dataset = dict(type="oxford_pets", root="data")
