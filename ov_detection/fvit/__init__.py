"""F-ViT, an open-vocabulary detector over a frozen CLIP, on detectron2. Start at fvit_model.py."""
