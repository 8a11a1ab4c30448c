#!/bin/sh
# A trainer that trains nothing and takes next to nothing, so that hundreds fit on one machine: a step a second, as many
# as the job asks for, then done.
#
#     sh small_trainer.sh RUN_FOLDER
folder=$1
text() { sed -n "s/.*\"$1\": \"\(.*\)\".*/\1/p" "$folder/spec.json"; }
steps=$(sed -n 's/.*"maxTrainSteps": \([0-9]*\).*/\1/p' "$folder/spec.json")
sequence=0
record() {
    sequence=$((sequence + 1))
    printf '{"record":"%s","sequence":%d,"time":%s,%s}\n' "$1" "$sequence" "$(date +%s.%N)" "$2" \
        >>"$folder/progress.jsonl"
}
record phase '"phase":"training"'
step=0
while [ "$step" -lt "$steps" ]; do
    sleep 1
    step=$((step + 1))
    record step "\"step\":$step,\"totalSteps\":$steps,\"loss\":0.5,\"learningRate\":0.0001"
done
echo adapter >"$(text attemptPath)/pytorch_lora_weights.safetensors"
record done "\"steps\":$steps,\"artifacts\":[{\"path\":\"pytorch_lora_weights.safetensors\",\"kind\":\"adapter\",\
\"sizeBytes\":0,\"sha256\":\"\"}],\"firstLoss\":1.0,\"lastLoss\":0.5,\"fixedLossBefore\":1.0,\"fixedLossAfter\":0.5"
