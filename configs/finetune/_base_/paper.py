# The paper's fine-tuning for ranking (section 3.3): one epoch, rate 1e-5, its prompt, about 30,000 questions (4.1).
#
# It does not say: batch, warm-up, LoRA rank, what learns. 128 rows a step and warm-up .03 are LLaVA's own script's.
# A sweep is worth its time: 30,000 rows of 128 are 235 steps, and 1e-5 moves a fresh LoRA little in so many; expect it
# to learn the form of the answer. Try --cfg-options schedule.learning_rate=5e-5 and 2e-4 (LLaVA's rate for LoRA), each
# with its own --out, and compare rank-1 on the held-out rows, which the training prints.
#
# Memory, computed (docs/finetune.md): 24 GB hold the four rows of a batch below for every model here, 16 GB none.
asks = [dict(type="Generate", prompt="paper")]
cropper = dict(window="pad")
adapter = dict(rank=64, alpha=128, dropout=0.05)
schedule = dict(epochs=1, learning_rate=1e-5, batch_size=4, accumulation=32, workers=4)
