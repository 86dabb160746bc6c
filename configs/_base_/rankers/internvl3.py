# InternVL3-8B (`hf download OpenGVLab/InternVL3-8B-hf`): one 448 px tile, 256 visual tokens per crop.
ranker = dict(type="TransformersRanker", model="OpenGVLab/InternVL3-8B-hf", ask=dict(type="Likelihood"), batch_size=16)
