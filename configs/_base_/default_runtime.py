# What every config shares: MMDetection's runtime, our report and our way of drawing.
default_scope = "mmdet"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="rar_mmdet.RecognitionVisualizationHook", score_thr=0.0),
)
custom_hooks = [dict(type="rar_mmdet.RecognitionHook")]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="rar_mmdet.RecognitionVisualizer", name="visualizer", vis_backends=vis_backends)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
log_level = "INFO"
load_from = None
resume = False

test_cfg = dict(type="TestLoop")
