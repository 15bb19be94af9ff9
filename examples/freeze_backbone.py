"""Train with the backbone frozen for the first epochs: python examples/freeze_backbone.py DATA.

New heads send large gradients into a pretrained backbone before they have learnt anything. This callback keeps the
backbone as it is until they have.
"""

import sys

import doublehead


class FreezeBackbone(doublehead.Callback):
    """Let the backbone learn only after some epochs.

    Args:
        epochs: how many it stays frozen.
    """

    def __init__(self, epochs):
        self.epochs = epochs

    def begin(self, run):
        """Remember what may learn; layers that `trainable_stages` freezes are not among it."""
        self.layers = [parameter for parameter in run.model.backbone.parameters() if parameter.requires_grad]
        self.step(run, {})

    def step(self, run, losses):
        """Depend on the epoch alone, so that a resumed run does the same."""
        for parameter in self.layers:
            parameter.requires_grad_(run.epoch >= self.epochs)


if __name__ == "__main__":
    doublehead.train(sys.argv[1], "double-head-fused-lite", callbacks=[FreezeBackbone(epochs=2)])
