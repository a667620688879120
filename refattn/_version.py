"""The version, in one place: the build, the citation check and ``show_versions`` read it here."""

__version__ = "0.1.0"
