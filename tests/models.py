"""Options that make backbones tiny, by timm's names."""

VIT, SWIN, RESNET = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"
TINY_VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
TINY_SWIN = {"img_size": 64, "embed_dim": 12, "depths": (2, 2, 2), "num_heads": (1, 2, 3), "window_size": 4}
TINY_RESNET = {"channels": (8, 16, 16, 16)}
SMALLEST_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
