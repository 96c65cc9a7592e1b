"""Run one table or figure of the paper again, and write it beside the paper's figures."""
