"""One small model of each family of timm that the package is tried with."""

FAMILIES = (
    "resnet18",
    "regnety_002",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "convnext_atto",
    "hgnetv2_b0",
    "repvit_m0_9",
    "swin_tiny_patch4_window7_224",
)
