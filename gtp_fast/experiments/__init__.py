"""Many runs: trials, sweeps, the paper's tables and figures, reports and latencies."""
