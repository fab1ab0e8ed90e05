"""The work in processes that may die: decoding, batches of images, the writing of reports."""
