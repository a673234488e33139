"""Certificates: what provably holds for a net, and with which confidence.

gram.py          spectral norms of matrices from above, rounding included
convolution.py   the same of convolutions as operators on images
linear.py        linear layers: operator, composition, rounding in float32
pooling.py       average and max pooling
layers.py        every layer that is known; activations, dropout, padding
functions.py     the same as functions and methods of tensors
trace.py         from a net to the graph of what it does, and what no graph shows
values.py        what a walk through a net carries along
walk.py          from the image to the logits of any net that can be traced
certify.py       radius of each image, certified accuracy, verdict
binomial.py      exact limits on a probability
smoothing.py     randomized smoothing: any net, with a confidence
folders.py       the certificate of a run folder
"""

from ironrank.certificates.certify import certify
from ironrank.certificates.convolution import Convolution
from ironrank.certificates.gram import spectral_norm
from ironrank.certificates.smoothing import smooth

__all__ = ["certify", "smooth", "Convolution", "spectral_norm"]
