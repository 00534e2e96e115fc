import json
import os

with open(f"{os.environ['SHARED']}/testbed.json") as file:
    url = next(sae["sae_url"] for sae in json.load(file)["saes"] if sae["id"] == "sae-uvigo-4")
