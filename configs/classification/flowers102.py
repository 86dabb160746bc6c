_base_ = "_base_/rar.py"

dataset = dict(type="flowers102", root="data")
