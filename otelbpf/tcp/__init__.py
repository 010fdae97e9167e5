# SPDX-License-Identifier: Apache-2.0
"""TCP loss and connections, from records to spans and metric points. Knows no kernel."""
