'use strict'
// kafkajs. The records and the report are described in ../README.md.

const { createRequire } = require('module')
// The packages are installed beside the build's other output, not beside this file.
const load = process.env.CLIENTS_NODE_MODULES ? createRequire(process.env.CLIENTS_NODE_MODULES + '/') : require
const kafkajs = load('kafkajs')
const { Kafka, logLevel, CompressionTypes, CompressionCodecs, ConfigResourceTypes, PartitionAssigners } = kafkajs
const lz4 = load('lz4-napi')
const zstd = load('@bokuweb/zstd-wasm')
const snappy = load('kafkajs-snappy')

const VERSION = load('kafkajs/package.json').version
const BASE_MS = 1700000000000
const [bootstrap, prefix, ...chosen] = process.argv.slice(2)
const kafka = new Kafka({ clientId: 'the-client', brokers: [bootstrap], logLevel: logLevel.NOTHING, retry: { retries: 8, initialRetryTime: 100 } })
const admin = kafka.admin()
const assert = require('assert')

CompressionCodecs[CompressionTypes.Snappy] = snappy
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: encoder => lz4.compressFrame(encoder.buffer),
  decompress: buffer => lz4.decompressFrame(buffer),
})
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async encoder => Buffer.from(zstd.compress(encoder.buffer, 1)),
  decompress: async buffer => Buffer.from(zstd.decompress(buffer)),
})

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))

function noise(size, seed) {
  const out = Buffer.alloc(size)
  let state = seed
  for (let i = 0; i < size; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    out[i] = state & 0xff
  }
  return out
}

// Headers are an object here: duplicates of one name are a list, and the order between names is theirs.
function records() {
  const up = Buffer.from([...Array(256).keys()])
  const all = [
    ['plain', 'value'], [null, 'no key'], ['tombstone', null], [null, null], [Buffer.alloc(0), Buffer.alloc(0)],
    ['headers', 'with headers', { h: ['1', '2', '1'], empty: '', 'caf\u00e9': Buffer.from([0, 255, 254]) }],
    [up, Buffer.from(up).reverse()], ['big', noise(900000, 7), { size: '900000' }],
  ]
  for (let i = 0; i < 60; i++) all.push([`key-${i % 7}`, `the quick brown fox ${i} `.repeat(20), { n: String(i) }])
  return all.map(([key, value, headers], i) => ({ key, value, headers: headers || {}, timestamp: String(BASE_MS + i * 1000) }))
}

const simple = (count, tag) => [...Array(count).keys()].map(i =>
  ({ key: `k${i}`, value: `${tag}-${i}`, headers: {}, timestamp: String(BASE_MS + i * 1000) }))

const bytes = v => (v === null || v === undefined ? null : Buffer.from(v))
const flat = headers => Object.entries(headers || {}).flatMap(([k, v]) => (Array.isArray(v) ? v : [v]).map(x => [k, bytes(x).toString('hex')]))

function same(acked, seen) {
  const order = all => [...all].sort((a, b) => a.partition - b.partition || Number(a.offset) - Number(b.offset))
  assert.strictEqual(seen.length, acked.length, `${acked.length} records produced, ${seen.length} consumed`)
  const got = order(seen)
  order(acked).forEach((a, i) => {
    const b = got[i]
    const where = `partition ${a.partition} offset ${a.offset}`
    assert.deepStrictEqual([b.partition, Number(b.offset)], [a.partition, Number(a.offset)], `acknowledged at ${where}`)
    for (const field of ['key', 'value']) {
      const [x, y] = [bytes(a.record[field]), b.message[field]]
      assert(x === null ? y === null : y !== null && x.equals(y), `${field} of ${where} differs`)
    }
    assert.strictEqual(b.message.timestamp, a.record.timestamp, `timestamp of ${where}`)
    assert.deepStrictEqual(flat(b.message.headers), flat(a.record.headers), `headers of ${where}`)
  })
}

async function until(seconds, what, condition) {
  const end = Date.now() + seconds * 1000
  while (!(await condition())) {
    assert(Date.now() < end, `${what} did not happen within ${seconds} s`)
    await sleep(50)
  }
}

async function fails(type, what, promise) {
  let error = null
  try { await promise } catch (e) { error = e }
  assert(error !== null, `${what} succeeded`)
  const types = [error.type, ...(error.errors || []).map(e => e.type), ...(error.groups || []).map(g => g.error && g.error.type)]
  assert(types.includes(type), `${what}: expected ${type}, got ${error.message} ${types}`)
}

async function create(name, partitions = 3, configs = {}) {
  const topic = `${prefix}-${name}`
  const configEntries = Object.entries(configs).map(([name, value]) => ({ name, value }))
  assert(await admin.createTopics({ waitForLeaders: true, topics: [{ topic, numPartitions: partitions, replicationFactor: 1, configEntries }] }), 'the topic was there')
  return topic
}

// Sends one partition's records per request, so that the answer's base offset gives every record's offset.
async function produce(topic, batch, partitions = 3, { idempotent = false, acks = -1, compression = CompressionTypes.None } = {}) {
  const producer = kafka.producer({ idempotent, maxInFlightRequests: idempotent ? 1 : undefined, allowAutoTopicCreation: true })
  await producer.connect()
  const acked = []
  try {
    for (let p = 0; p < partitions; p++) {
      const mine = batch.filter((_, i) => i % partitions === p)
      // Two requests, so that a second batch follows the first.
      for (const part of [mine.slice(0, Math.ceil(mine.length / 2)), mine.slice(Math.ceil(mine.length / 2))]) {
        if (part.length === 0) continue
        const answer = await producer.send({ topic, acks, compression, messages: part.map(r => ({ ...r, partition: p })) })
        part.forEach((record, i) => acked.push({ partition: p, offset: acks === 0 ? -1 : Number(answer[0].baseOffset) + i, record }))
      }
    }
  } finally {
    await producer.disconnect()
  }
  return acked
}

function member(groupId, options = {}) {
  return kafka.consumer({ groupId, sessionTimeout: 10000, heartbeatInterval: 500, rebalanceTimeout: 10000, maxWaitTimeInMs: 200, ...options })
}

// Runs a consumer; what it read is in `seen`, what it owns in `owned`.
async function start(topic, groupId, options = {}, run = {}) {
  const one = { consumer: member(groupId, options), seen: [], owned: 0 }
  one.consumer.on(one.consumer.events.GROUP_JOIN, e => { one.owned = (e.payload.memberAssignment[topic] || []).length })
  await one.consumer.connect()
  await one.consumer.subscribe({ topics: [topic], fromBeginning: true })
  await one.consumer.run({
    partitionsConsumedConcurrently: 4,
    eachMessage: async ({ partition, message }) => { one.seen.push({ partition, offset: message.offset, message }) },
    ...run,
  })
  one.stop = () => one.consumer.disconnect()
  return one
}

let groups = 0
async function readAll(topic, count, seek = () => {}) {
  const one = await start(topic, `${prefix}-reader-${groups++}`)
  seek(one.consumer)
  try {
    await until(30, `${count} records read`, () => one.seen.length >= count)
    await sleep(300)
  } finally {
    await one.stop()
  }
  return one.seen
}

const scenarios = []
const scenario = (name, apis, body) => scenarios.push({ name, apis: apis.split(' '), body })

scenario('topic.create', 'ApiVersions Metadata CreateTopics', async () => {
  const topic = await create('create', 3, { 'cleanup.policy': 'compact' })
  const again = await admin.createTopics({ topics: [{ topic, numPartitions: 3 }] })
  assert.strictEqual(again, false, 'creating the topic twice succeeded')
  await admin.createTopics({ validateOnly: true, waitForLeaders: false, topics: [{ topic: topic + '-dry', numPartitions: 1, replicationFactor: 1 }] })
  assert(!(await admin.listTopics()).includes(topic + '-dry'), 'validateOnly created the topic')
})

for (const [name, compression] of [['none', CompressionTypes.None], ['gzip', CompressionTypes.GZIP], ['snappy', CompressionTypes.Snappy],
  ['lz4', CompressionTypes.LZ4], ['zstd', CompressionTypes.ZSTD]]) {
  scenario('produce.' + name, 'Produce Fetch Metadata', async () => {
    const topic = await create('codec-' + name)
    const acked = await produce(topic, records(), 3, { compression })
    same(acked, await readAll(topic, acked.length))
  })
}

scenario('topic.auto-create', 'Metadata Produce', async () => {
  const topic = `${prefix}-auto`
  same(await produce(topic, simple(3, 'a'), 1), await readAll(topic, 3))
})

scenario('produce.idempotent', 'InitProducerId Produce', async () => {
  const topic = await create('idempotent')
  const acked = await produce(topic, [...records(), ...simple(300, 'i')], 3, { idempotent: true })
  same(acked, await readAll(topic, acked.length))
})

scenario('produce.acks', 'Produce', async () => {
  const topic = await create('acks', 1)
  const acked = await produce(topic, simple(20, 'one'), 1, { acks: 1 })
  await produce(topic, simple(20, 'zero'), 1, { acks: 0 })
  const back = await readAll(topic, 40)
  same(acked, back.filter(s => Number(s.offset) < 20))
  assert.strictEqual(back.length, 40)
})

scenario('produce.too-large', 'Produce', async () => {
  const topic = await create('too-large', 1, { 'max.message.bytes': '1000' })
  await fails('MESSAGE_TOO_LARGE', 'a record above max.message.bytes',
    produce(topic, [{ key: 'k', value: Buffer.alloc(5000), headers: {}, timestamp: String(BASE_MS) }], 1))
  assert.strictEqual((await admin.fetchTopicOffsets(topic))[0].high, '0', 'the rejected record is there')
})

scenario('group.rebalance', 'FindCoordinator JoinGroup SyncGroup Heartbeat LeaveGroup OffsetCommit OffsetFetch', async () => {
  const topic = await create('group', 4)
  const group = `${prefix}-group`
  const acked = await produce(topic, simple(200, 'g'), 4)
  const first = await start(topic, group)
  await until(30, 'first member reads all', () => first.owned === 4 && first.seen.length >= 200)
  const second = await start(topic, group)
  await until(30, 'two members own 2 partitions each', () => first.owned === 2 && second.owned === 2)
  acked.push(...await produce(topic, simple(100, 'h'), 4))
  await until(20, 'two members read all', () => first.seen.length + second.seen.length >= 300)
  await second.stop()
  await until(30, 'first member owns 4 partitions again', () => first.owned === 4)
  acked.push(...await produce(topic, simple(40, 'i'), 4))
  await until(20, 'first member reads the rest', () => first.seen.length + second.seen.length >= 340)
  await first.stop()
  // A member that rejoins may read again what it had not committed: nothing may be missing.
  same(acked, [...new Map([...first.seen, ...second.seen].map(s => [`${s.partition}/${s.offset}`, s])).values()])
})

scenario('group.resume', 'OffsetCommit OffsetFetch JoinGroup SyncGroup', async () => {
  const topic = await create('resume', 2)
  const group = `${prefix}-resume`
  const old = await produce(topic, simple(50, 'r'), 2)
  const first = await start(topic, group, {}, { autoCommit: false })
  await until(30, 'first member reads all', () => first.seen.length >= 50)
  same(old, first.seen)
  await first.consumer.commitOffsets([{ topic, partition: 0, offset: '25', metadata: 'half' }, { topic, partition: 1, offset: '20', metadata: 'caf\u00e9' }])
  await first.stop()
  const acked = [...await produce(topic, simple(10, 's'), 2), ...old.filter(a => a.partition === 1 && a.offset >= 20)]
  const second = await start(topic, group, {}, { autoCommit: false })
  await until(30, 'second member reads the rest', () => second.seen.length >= 15)
  await sleep(300)
  await second.stop()
  same(acked, second.seen)
  const [stored] = await admin.fetchOffsets({ groupId: group, topics: [topic] })
  const byPartition = Object.fromEntries(stored.partitions.map(p => [p.partition, p]))
  assert.deepStrictEqual([byPartition[0].metadata, byPartition[1].metadata], ['half', 'caf\u00e9'])
})

scenario('offsets.list', 'ListOffsets', async () => {
  const topic = await create('list', 1)
  await produce(topic, simple(20, 'l'), 1)
  const [only] = await admin.fetchTopicOffsets(topic)
  assert.deepStrictEqual([only.low, only.high], ['0', '20'])
  const at = async ms => (await admin.fetchTopicOffsetsByTimestamp(topic, ms))[0].offset
  assert.strictEqual(await at(BASE_MS + 5500), '6', 'by time')
  assert.strictEqual(await at(BASE_MS + 1000000000), '20', 'after the end, kafkajs asks for the end')
})

scenario('seek.offset', 'Fetch', async () => {
  const topic = await create('seek', 1)
  const acked = await produce(topic, simple(30, 't'), 1)
  same(acked.slice(12), (await readAll(topic, 18, c => c.seek({ topic, partition: 0, offset: '12' }))))
})

scenario('seek.time', 'ListOffsets Fetch', async () => {
  const topic = await create('time', 1)
  const acked = await produce(topic, simple(30, 't'), 1)
  const [{ offset }] = await admin.fetchTopicOffsetsByTimestamp(topic, BASE_MS + 10500)
  same(acked.slice(11), await readAll(topic, 19, c => c.seek({ topic, partition: 0, offset })))
})

scenario('longpoll', 'Fetch', async () => {
  const topic = await create('longpoll', 1)
  const one = await start(topic, `${prefix}-longpoll`, { maxWaitTimeInMs: 5000 }, { autoCommit: false })
  const producer = kafka.producer()
  await producer.connect()
  await sleep(1500)
  const took = []
  for (let i = 1; i <= 5; i++) {
    await producer.send({ topic, messages: [{ value: 'p' }] })
    const sent = Date.now()
    while (one.seen.length < i) {
      assert(Date.now() - sent < 20000, 'no record within 20 s')
      await sleep(1)
    }
    took.push(Date.now() - sent)
    await sleep(200)
  }
  await producer.disconnect()
  await one.stop()
  return `record arrives ${took.sort((a, b) => a - b)[2]} ms after its acknowledgement`
})

scenario('admin.partitions', 'CreatePartitions Metadata', async () => {
  const topic = await create('grow', 1)
  await admin.createPartitions({ topicPartitions: [{ topic, count: 4 }] })
  await until(20, '4 partitions', async () => (await admin.fetchTopicMetadata({ topics: [topic] })).topics[0].partitions.length === 4)
  same(await produce(topic, simple(20, 'x'), 4), await readAll(topic, 20))
  await fails('INVALID_PARTITIONS', 'shrinking', admin.createPartitions({ topicPartitions: [{ topic, count: 2 }] }))
})

scenario('admin.configs', 'DescribeConfigs AlterConfigs', async () => {
  const topic = await create('configs', 1, { 'retention.ms': '3600000' })
  const get = async name => {
    const answer = await admin.describeConfigs({ includeSynonyms: true, resources: [{ type: ConfigResourceTypes.TOPIC, name: topic }] })
    return answer.resources[0].configEntries.find(e => e.configName === name)
  }
  assert.strictEqual((await get('retention.ms')).configValue, '3600000')
  assert.strictEqual((await get('cleanup.policy')).configValue, 'delete')
  await admin.alterConfigs({ validateOnly: false, resources: [{ type: ConfigResourceTypes.TOPIC, name: topic, configEntries: [{ name: 'retention.bytes', value: '1000000' }] }] })
  await until(10, 'AlterConfigs', async () => (await get('retention.bytes')).configValue === '1000000')
  assert.strictEqual((await get('retention.ms')).configValue, '604800000', 'AlterConfigs must reset what it does not name')
})

scenario('admin.cluster', 'Metadata', async () => {
  const cluster = await admin.describeCluster()
  assert(cluster.clusterId && cluster.brokers.some(b => b.nodeId === cluster.controller), `the controller is not a listed broker: ${JSON.stringify(cluster)}`)
})

scenario('admin.groups', 'ListGroups DescribeGroups DeleteGroups', async () => {
  const topic = await create('groups', 1)
  const group = `${prefix}-groups`
  await produce(topic, simple(5, 'g'), 1)
  const one = await start(topic, group)
  await until(30, 'records read', () => one.seen.length === 5)
  assert((await admin.listGroups()).groups.some(g => g.groupId === group), 'group is not listed')
  const described = (await admin.describeGroups([group])).groups[0]
  assert.deepStrictEqual([described.state, described.members.length, described.members[0].clientId], ['Stable', 1, 'the-client'])
  await fails('NON_EMPTY_GROUP', 'deleting a group with members', admin.deleteGroups([group]))
  await one.stop()
  await until(20, 'group empty', async () => (await admin.describeGroups([group])).groups[0].state === 'Empty')
  await admin.deleteGroups([group])
  assert(!(await admin.listGroups()).groups.some(g => g.groupId === group), 'the deleted group is listed')
})

scenario('admin.group-offsets', 'OffsetFetch OffsetCommit', async () => {
  const topic = await create('group-offsets', 2)
  const group = `${prefix}-group-offsets`
  await produce(topic, simple(20, 'g'), 2)
  await admin.setOffsets({ groupId: group, topic, partitions: [{ partition: 0, offset: '4' }, { partition: 1, offset: '7' }] })
  const stored = async () => (await admin.fetchOffsets({ groupId: group, topics: [topic] }))[0].partitions
    .sort((a, b) => a.partition - b.partition).map(p => p.offset)
  assert.deepStrictEqual(await stored(), ['4', '7'])
  await admin.resetOffsets({ groupId: group, topic, earliest: true })
  assert.deepStrictEqual((await stored()).map(Number).every(o => o <= 0), true, 'offsets reset')
})

scenario('admin.delete-records', 'DeleteRecords ListOffsets', async () => {
  const topic = await create('delete-records', 1)
  const acked = await produce(topic, simple(20, 'd'), 1)
  // kafkajs looks for the leader in metadata that only an earlier call about the topic has fetched.
  await admin.fetchTopicOffsets(topic)
  await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '8' }] })
  await until(10, 'log start 8', async () => (await admin.fetchTopicOffsets(topic))[0].low === '8')
  same(acked.slice(8), await readAll(topic, 12))
})

scenario('topic.compact', 'CreateTopics Produce Fetch', async () => {
  // Under these configs any broker compacts soon: what is a moment old, however little it is.
  const topic = await create('compact', 1, { 'cleanup.policy': 'compact', 'min.cleanable.dirty.ratio': '0.01', 'segment.ms': '100', 'max.compaction.lag.ms': '100' })
  const began = Date.now()
  const record = (i, key, value) => ({ key, value, headers: {}, timestamp: String(BASE_MS + i * 1000) })
  const rounds = [...Array(50).keys()].map(i => record(i, `k${i % 10}`, `${i % 10} in ${Math.floor(i / 10)}`))
  await produce(topic, [...rounds, record(50, 'k0', null)], 1)
  await until(75, 'compaction', async () => {
    await sleep(1000)
    const passed = Math.floor((Date.now() - began) / 1000)
    // Kafka compacts only what a later record has followed.
    const [{ offset }] = await produce(topic, [record(100 + passed, 'tick', String(passed))], 1)
    const one = await start(topic, `${prefix}-reader-${groups++}`)
    try {
      await until(30, 'the end', () => one.seen.some(s => Number(s.offset) >= offset))
    } finally {
      await one.stop()
    }
    const rows = one.seen.filter(s => s.message.key.toString() !== 'tick')
    assert(one.seen.every((s, i) => i === 0 || Number(s.offset) > Number(one.seen[i - 1].offset)), 'the offsets do not rise')
    const newest = Object.fromEntries(rows.map(s => [s.message.key.toString(), s.message.value && s.message.value.toString()]))
    for (let key = 1; key < 10; key++) assert.strictEqual(newest[`k${key}`], `${key} in 4`, 'the newest is there at any time')
    assert(!newest.k0, 'the deleted key is back')
    // The deletion itself stays for a day.
    return rows.length <= 10
  })
  return `compacted after ${Math.floor((Date.now() - began) / 1000)} s`
})

scenario('topic.delete', 'DeleteTopics Metadata', async () => {
  const topic = await create('delete', 2)
  await produce(topic, simple(10, 'd'), 2)
  await admin.deleteTopics({ topics: [topic] })
  await until(20, 'topic gone', async () => !(await admin.listTopics()).includes(topic))
  await create('delete', 1)
  const acked = await produce(topic, simple(3, 'e'), 1)
  assert.deepStrictEqual(acked.map(a => a.offset), [0, 1, 2], 'a topic made again starts at 0')
  same(acked, await readAll(topic, 3))
})

async function main() {
  if (!bootstrap || !prefix) {
    console.error('usage: kafkajs.js BOOTSTRAP PREFIX [SCENARIO...]')
    process.exit(2)
  }
  const unknown = chosen.filter(name => !scenarios.some(s => s.name === name))
  if (unknown.length) {
    console.error(`no such scenario: ${unknown}`)
    process.exit(2)
  }
  process.env.KAFKAJS_NO_PARTITIONER_WARNING = '1'
  await zstd.init()
  await admin.connect()
  let failed = false
  for (const { name, apis, body } of scenarios) {
    if (chosen.length && !chosen.includes(name)) continue
    const began = Date.now()
    let [note, error] = [null, null]
    try {
      const limit = sleep(120000).then(() => { throw new Error('did not end within 2 minutes') })
      note = (await Promise.race([body(), limit])) || null
    } catch (problem) {
      failed = true
      error = `${problem.name}: ${problem.message}`
      if (process.env.VERBOSE) console.error(problem.stack)
    }
    console.log(JSON.stringify({ client: 'kafkajs', version: VERSION, scenario: name, apis, ok: error === null, error, note, ms: Date.now() - began }))
  }
  process.exit(failed ? 1 : 0)
}

main().catch(problem => { console.error(problem.stack); process.exit(1) })
