"""The audited side of docs/audit-tables.md: models of a table, by scikit-learn and PyTorch.

    python fitting.py TABLE.csv LABEL NAME [--forget FILE] [--seed N]

fits a random forest, boosted trees and a network, and writes NAME.forest, NAME.boosted and NAME.pt2. With
--forget the rows that the file lists are left out. "examples.tables.fitting:NAME_forest" reads the forest
again, and "examples.tables.fitting:NAME_boosted" the trees.
"""

import argparse
from collections.abc import Callable
from typing import Any

import joblib
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    """A network of one hidden layer, on columns that it standardises itself."""

    def __init__(self, x: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("deviation", x.std(0))
        self.layers = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers((x - self.mean) / self.deviation)


def network(x: pd.DataFrame, y: pd.Series, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    inputs = torch.tensor(x.to_numpy(), dtype=torch.float32)
    labels = torch.tensor(pd.factorize(y, sort=True)[0])
    model = Network(inputs, int(labels.max()) + 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(150):
        for index in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[index]), labels[index]).backward()
            optimizer.step()
    return model.eval()


def forest(x: pd.DataFrame, y: pd.Series, seed: int) -> Any:
    return RandomForestClassifier(300, random_state=seed).fit(x, y)


def boosted(x: pd.DataFrame, y: pd.Series, seed: int) -> Any:
    return HistGradientBoostingClassifier(random_state=seed).fit(x, y)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("table")
    parser.add_argument("label")
    parser.add_argument("name")
    parser.add_argument("--forget")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = pd.read_csv(options.table)
    if options.forget:
        table = table.drop(index=pd.read_csv(options.forget)["row"] - 1)
    x, y = table.drop(columns=options.label), table[options.label]
    joblib.dump(forest(x, y, options.seed), f"{options.name}.forest")
    joblib.dump(boosted(x, y, options.seed), f"{options.name}.boosted")
    inputs, batch = torch.zeros(2, x.shape[1]), {0: torch.export.Dim("batch")}
    program = torch.export.export(network(x, y, options.seed), (inputs,), dynamic_shapes=(batch,))
    torch.export.save(program, f"{options.name}.pt2")
    print(f"{options.name}: a forest, boosted trees and a network, of {len(table)} rows")


def __getattr__(name: str) -> Callable[[], Any]:
    model, _, kind = name.rpartition("_")
    if not model:
        raise AttributeError(name)
    return lambda: joblib.load(f"{model}.{kind}")


if __name__ == "__main__":
    main()
