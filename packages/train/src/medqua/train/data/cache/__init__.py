"""Images decoded once, in shards that every process of every run maps from disk.

    DIR/KEY/00000.safetensors   decoded images, stacked by type: uint8, uint16, float32 [n, S, S]
    DIR/KEY/00001.safetensors   ...
    DIR/KEY/index.parquet       image -> shard, type, row, CRC-32, size of its source; written last

KEY is a hash of the `ImageSpec`, the data set and its image names: another specification, data
set or selection has another folder. Labels are no part of it, so changing them decodes nothing.
"""

from medqua.train.data.cache.build import build_cache
from medqua.train.data.cache.read import CachedImages, ImageCache
from medqua.train.data.cache.shards import cache_key

__all__ = ["CachedImages", "ImageCache", "build_cache", "cache_key"]
