"""Intervals and tests for multi-label scores of which several images may be one patient's.

auroc       the weighted Mann-Whitney statistic that everything else resamples
resampling  patients drawn with replacement, the same draws for every arm
bootstrap   intervals of AUROC and of calibration figures
paired      the difference of two arms, over the same patients and over seeds
delong      the difference of two AUROCs by placements, clustered by patient
mcnemar     thresholded answers of two arms
holm        many labels, one family of tests
"""
