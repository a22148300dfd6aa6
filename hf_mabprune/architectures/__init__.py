"""Model families: where the FFN and attention sites are, and what a family's stock config can say."""

from hf_mabprune.architectures.base import ARCHITECTURES, Architecture, architecture_of, family_of
from hf_mabprune.architectures.sites import Site, linear_at

__all__ = ["ARCHITECTURES", "Architecture", "Site", "architecture_of", "family_of", "linear_at"]
