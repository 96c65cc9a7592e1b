"""Everything that needs the card, in one call: tests, floor, speed of each switch, seeds, latency, learning.

`plan` names the parts, `supervise` runs each in processes that may crash or hang, `results` keeps and shows what came
out. A part is a function of a row and of `dry`: it takes what to measure and returns figures, or raises; then the
row shows the reason in the figure's place. `make gpu-dry` goes the same way on the CPU at toy sizes.
"""
