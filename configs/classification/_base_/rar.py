# Few-shot recognition with the paper's retriever, CLIP ViT-B/16, and its first ranker, LLaVA-1.5-7B.
#
# Another ranker: its dict from configs/_base_/rankers/. Another encoder: docs/encoders.md. Without `ranker` the table
# has the training-free classifiers alone. Weights and data are fetched by you; what is missing is listed.
encoder = dict(type="OpenClipEncoder", model="ViT-B-16", pretrained="openai")
cropper = dict(window="cover")  # open_clip's own preprocessing: short side to the encoder's size, centre crop
ranker = dict(
    type="TransformersRanker",
    model="llava-hf/llava-1.5-7b-hf",
    ask=dict(type="Likelihood"),
    batch_size=16,
    loading=dict(chat_template="llava_v1"),
)
ranker_cropper = dict(window="pad")  # the whole photo
fusion = dict(type="LogLikFusion")  # alpha 0.3: fit it on a val part where you have one
num_candidates = 5
