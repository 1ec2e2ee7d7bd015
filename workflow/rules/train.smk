# The grid: each run is a job of its own.


rule data:
    """One data set: its official files, downloaded if absent, checked by md5, and converted for training once."""
    output:
        multiext("data/ready/{dataset}/", "images.npy", "labels.npy"),
    log:
        "data/ready/{dataset}.log",
    conda:
        "../../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
    # No params: the set is the same wherever its files lie.
    shell:
        "python -m rankcollapse data {wildcards.dataset} --data-dir {GRID.data_dir:q} {DOWNLOAD} 2>&1 | tee {log:q} >&2"


rule train:
    """One run. It is trained again when its identity changes, its knobs or the code that trains, and for nothing else."""
    input:
        # Not for its time: a set converted anew is the same set.
        ancient(multiext("data/ready/{dataset}/", "images.npy", "labels.npy")),
    output:
        multiext(
            f"{RESULTS}/runs/{grid.NAME}/",
            "config.json",
            "checkpoint.pt",
            "metrics.csv",
            "spectra.npz",
            "alignment.csv",
            "run.json",
        ),
    log:
        f"{RESULTS}/logs/train/{grid.NAME}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{grid.NAME}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: GRID.threads
    resources:
        gpu=lambda wildcards: int(on_gpu()),
        mem_mb=lambda wildcards: planned(wildcards).study.cost.mem_mb,
        runtime=minutes,
    params:
        identity=lambda wildcards: grid.identity(planned(wildcards).config),
    shell:
        "python -m rankcollapse train {PLAN} --run {wildcards.study}/{wildcards.dataset}/{wildcards.arm}/seed{wildcards.seed}"
        " --identity {params.identity} --out $(dirname {output[0]}) --threads {threads} 2>&1 | tee {log:q} >&2"
