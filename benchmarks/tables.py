"""How long does a measured table of 200,000 rows take to be read?

    python benchmarks/tables.py

A CSV file of about 12 MB with the columns that `save_table` writes: once of 3,125 layers at all 64 pairs of widths,
once of 200,000 layers at 8 bits. Each is read in a process of its own, which has nothing warmed up but its imports.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import records

ROWS = 200_000
HEADER = (
    "layer,kernel,stride,in_channels,out_channels,groups,out_size,weight_bits,activation_bits,latency_ms,energy_mj\n"
)
READ = """
import json, sys, time, warnings
from haqjax.hardware.table_files import load_table
warnings.simplefilter("ignore")
times = []
for _ in range(4):
    start = time.perf_counter()
    load_table(sys.argv[1])
    times.append(time.perf_counter() - start)
print(json.dumps({"first": times[0], "later": min(times[1:])}))
"""


def write_table(path, layers):
    """Writes a table of so many layers and `ROWS` rows."""
    pairs = [(w, a) for w in range(1, 9) for a in range(1, 9)] if layers * 64 == ROWS else [(8, 8)]
    noise = np.random.default_rng(0).random((layers, len(pairs), 2))
    with path.open("w") as file:
        file.write(HEADER)
        for at in range(layers):
            for (w, a), (latency, energy) in zip(pairs, noise[at], strict=True):
                file.write(
                    f"blocks.{at}.conv,3x3,1x1,32,64,1,56x56,{w},{a},{w + a + latency:.6f},{w + a + energy:.6f}\n"
                )
    return path.stat().st_size


def bench(layers, folder):
    """Measures one table."""
    path = folder / "table.csv"
    size = write_table(path, layers)
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    return {"layers": layers, "rows": ROWS, "bytes": size, "seconds_to_read": json.loads(done.stdout)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        records.write("tables", [bench(layers, Path(folder)) for layers in (ROWS // 64, ROWS)])
