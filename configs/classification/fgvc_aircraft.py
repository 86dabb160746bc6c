_base_ = "_base_/rar.py"

dataset = dict(type="fgvc_aircraft", root="data")
