_base_ = "_base_/rar.py"

dataset = dict(type="flowers102_official", root="data")
