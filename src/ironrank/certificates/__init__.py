"""Certificates: what provably holds for a net, and with which confidence.

gram.py          spectral norms of matrices from above, rounding included
convolution.py   the same of convolutions as operators on images
"""

from ironrank.certificates.convolution import Convolution
from ironrank.certificates.gram import spectral_norm

__all__ = ["Convolution", "spectral_norm"]
