"""For an architect: does the network still train on my accumulator? Twenty steps on three designs."""

import torch

import fqtsim
from fqtsim.data import load_dataset
from fqtsim.models import build_model

digits = load_dataset("digits")
x, y = torch.from_numpy(digits.train_x[:128]), torch.from_numpy(digits.train_y[:128])

for name in ("int8_acc32_wrap", "int8_acc16_saturate", "int8_acc12_saturate"):
    model = build_model("cnn", digits.info, seed=0)
    net = fqtsim.fully_quantize(model, recipe="bhq5", hardware=name, seed=0)
    trainer = fqtsim.Trainer(net, optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9})
    losses = [trainer.step(x, y) for _ in range(20)]
    report = net.report()
    altered, outputs = (sum(row[key] for row in report) for key in ("altered", "outputs"))
    print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}; {altered:,} of {outputs:,} outputs altered")
