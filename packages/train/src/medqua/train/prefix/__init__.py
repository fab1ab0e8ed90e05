"""The frozen prefix of the backbone, computed once for each image and read back in every epoch.

Below the first decoder layer that is adapted or trained, a frozen backbone answers an image that
is not augmented with the same hidden states in every epoch, for every seed and every arm. They
are computed once, the whole model's own way, and kept as rows `[T, D]` of a memory-mapped file;
training then starts from them. What is kept is bound to what it was made from (weights, images,
prompt, `ImageSpec`) by the name of its folder, and each row to its checksum, verified whenever it
is read. Arms and seeds with the same frozen layers share it; processes wait for the one that
makes it.

cut         which layers never change, and how a model starts above them
states      what is kept of each image, on disk and as a data set
prepare     states that are there and checked against the whole model, or why there are none

states/KEY/prefix.json       what it was made from; written last
states/KEY/train.npy         [N, T, D] float32, or bfloat16 as int16
states/KEY/train.rows.npz    CRC-32 of each row, and which images could be read
"""
