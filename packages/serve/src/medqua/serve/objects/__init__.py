"""What a DICOM object says of itself: whose it is, of what kind, what a report needs of it."""
