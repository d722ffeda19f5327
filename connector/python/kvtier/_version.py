# SPDX-License-Identifier: Apache-2.0
"""Of the package, and of the library that it needs (major and minor)."""

__version__ = "0.1.0"
