# What every `rar-mmdet label --quality` shares. `parts` of each tells people what there is to fetch: sizes are
# parameters, about, and licences those that the models' cards state.
detector = dict(
    type="TransformersDetector",
    model="iSEE-Laboratory/llmdet_tiny",
    prompt="object . animal . person . vehicle . food . tool . furniture . clothing . plant",
)
recognizer = dict(
    cropper=dict(type="RegionCropper", scale=dict(type="AreaScale"), background=dict(type="BlurBackground")),
    memory=dict(type="TextMemory", templates="clip7"),
    vocabulary=["object"],  # the words take its place
)
