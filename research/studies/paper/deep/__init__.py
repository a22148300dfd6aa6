"""The deep settings of the study: images, texts and reasoning."""
