-- Health of an EmbeddingCache for Argo CD; docs/gitops.md says how to install it.
-- Argo CD itself answers for what is being deleted, before it asks this script.

local function answer(status, message)
  return {status = status, message = message}
end

if obj.spec ~= nil and obj.spec.paused then
  return answer("Suspended", "spec.paused: the operator leaves everything as it is")
end

local status = obj.status or {}
-- Says nothing of a newer spec yet; so does a status that is not there.
if status.observedGeneration ~= obj.metadata.generation then
  return answer("Progressing", "waiting for the operator to see this spec")
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function is(kind, wanted)
  return conditions[kind] ~= nil and conditions[kind].status == wanted
end

-- The first that holds. While pods are replaced a cache is Degraded and Reconciling at once: that is
-- progress, as it is for a Deployment, until somebody must act (Stalled).
for _, said in ipairs({
  {"Stalled", "Degraded"}, {"Reconciling", "Progressing"}, {"Degraded", "Degraded"}, {"Ready", "Healthy"},
}) do
  if is(said[1], "True") then
    return answer(said[2], conditions[said[1]].message)
  end
end
if conditions.Ready ~= nil then
  return answer("Progressing", conditions.Ready.message)
end
return answer("Progressing", "waiting for the operator to say whether it is ready")
