"""What `make demo` trains: a small ViT on synthetic images of 10 classes, about two minutes on one core.

    python cls_pretrain/lazy_train.py --config-file cls_pretrain/configs/demo_synthetic.py \\
        model.pool=cls train.output_dir=output/demo/demo_cls dataloader.train.dataset.root=output/demo/synthetic

tools/demo.py writes the images. Synthetic: its numbers say that the path works, not what LaSt does to photographs.
"""

from .tiny_imagenet import dataloader, evaluation, lr_multiplier, model, optimizer, train

model.model.update(num_layers=3, hidden_dim=96, mlp_dim=384, num_classes=10)
dataloader.train.dataset.root = "output/demo/synthetic"
train.update(output_dir="output/demo/demo_run", max_iter=400, eval_period=0)
train.checkpointer.update(period=200, max_to_keep=1)
