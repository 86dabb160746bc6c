# InternLM-XComposer2-VL-7B, the paper's best ranker (Table 3), natively: the candidates' likelihoods.
#
# Weights: `hf download internlm/internlm-xcomposer2-vl-7b --local-dir weights/published`, once
#   python tools/convert_xc2.py weights/published --out weights/internlm-xcomposer2-vl-7b
# and, if they lie elsewhere, RAR_XC2_PATH=/that/folder in the environment. docs/internlm_xc2.md has files and licence.
#
# GPU memory (computed from the published sizes): bf16 weights 16.1 GiB, plus 0.16 GiB of cache and about 0.1 GiB of
# activations per crop: batch_size=16 needs 24 GB, batch_size=4 still does not fit 16 GB. 4-bit weights 6.8 GiB:
# batch_size=8 on a 12 GB card, with a folder saved in 4 bit as the docs show.
ranker = dict(
    type="TransformersRanker",
    model="{{$RAR_XC2_PATH:weights/internlm-xcomposer2-vl-7b}}",
    ask=dict(type="Likelihood"),
    batch_size=16,
    loading=dict(dtype="bfloat16"),
)
