"""Data sets and the order in which a run reads them: pure functions of files and seed (S5.5)."""

from __future__ import annotations

from fqtsim.data.dataset import DataInfo, Dataset
from fqtsim.data.registry import dataset_names, load_dataset

__all__ = ["DataInfo", "Dataset", "dataset_names", "load_dataset"]
