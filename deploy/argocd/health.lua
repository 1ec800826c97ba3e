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

-- What a person must mend comes before what may pass by itself.
for _, kind in ipairs({"Stalled", "Degraded"}) do
  if is(kind, "True") then
    return answer("Degraded", conditions[kind].message)
  end
end
if is("Reconciling", "True") then
  return answer("Progressing", conditions.Reconciling.message)
end
if is("Ready", "True") then
  return answer("Healthy", conditions.Ready.message)
end
if conditions.Ready ~= nil then
  return answer("Progressing", conditions.Ready.message)
end
return answer("Progressing", "waiting for the operator to say whether it is ready")
