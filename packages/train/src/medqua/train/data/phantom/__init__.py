"""Phantoms: synthetic chest radiographs whose findings have causes, as a MIMIC-CXR tree."""

from medqua.train.data.phantom.tree import PhantomParameters, is_phantom_tree, write_tree

__all__ = ["PhantomParameters", "is_phantom_tree", "write_tree"]
