_base_ = "_base_/rar.py"

dataset = dict(type="raf_db", root="data")
