#!/bin/bash
# Make the runs in this directory with an older minigpt: make.sh OLD_TREE [PYTHON]. README.md says which one it was.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
old=$(cd "$1" && pwd)
python=${2:-python}
work=$(mktemp -d)
export PYTHONPATH=$old OMP_NUM_THREADS=1 MINIGPT_CACHE=$work/cache
cd "$work"
cp "$here"/cats.* "$here"/pets.* .

# cats: Ctrl-C some steps after the 30th, so a checkpoint that is not finished
$python -m minigpt train cats.yaml &
until grep -qs '"step": 30' runs/cats/metrics.jsonl; do sleep 0.01; done
kill -INT $!
wait $! || test $? = 130
# pets: ended by its budget, to be resumed with a larger one
$python -m minigpt finetune pets.yaml

rm -rf "$here/runs"
mkdir "$here/runs"
for run in cats pets; do
    folder=$here/runs/$run/checkpoints
    mkdir -p "$folder"
    cp runs/$run/*.* "$here/runs/$run"
    cp runs/$run/checkpoints/best runs/$run/checkpoints/last "$folder"
    for name in best last; do cp -r "runs/$run/checkpoints/$(cat "$folder/$name")" "$folder"; done
done

# what the old code reads of them
for run in cats pets; do
    $python -m minigpt eval runs/$run --data cats.txt --json > "$here/$run-eval.json"
    $python -m minigpt generate runs/$run/checkpoints/last --prompt "the cat" --seed 3 --json > "$here/$run-generate.json"
done

# the old code goes on to the end; pets first, since its base is a checkpoint of cats
$python -m minigpt finetune pets.yaml --resume --train.max-steps 24
$python -m minigpt train cats.yaml
mkdir whole # and from nothing to the end, undisturbed
cp cats.* whole
(cd whole && $python -m minigpt train cats.yaml && cmp {.,..}/runs/cats/checkpoints/step-00000090/model.safetensors)
$python "$here/../old_arithmetic.py" runs "$here"
rm -r "$work"
du -sh --apparent-size "$here"
