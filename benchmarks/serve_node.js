// As Node's own documentation has it. A reload is the program's own there: one by one, the new worker
// listens before the old one is disconnected.
const cluster = require('node:cluster'), http = require('node:http');
const [port, workers] = process.argv.slice(2).map(Number);
if (cluster.isPrimary) {
  const leaving = new Set();
  for (let i = 0; i < workers; i++) cluster.fork();
  cluster.on('exit', (worker) => { if (!leaving.has(worker.id)) cluster.fork(); });
  process.on('SIGHUP', () => {
    const old = Object.values(cluster.workers);
    const next = () => {
      const worker = old.pop();
      if (!worker) return;
      cluster.fork().once('listening', () => {
        leaving.add(worker.id);
        worker.disconnect();
        next();
      });
    };
    next();
  });
} else {
  http.createServer((request, response) => {
    const body = `${process.pid} ${request.url}` + ' '.repeat(100);
    response.writeHead(200, {'Content-Length': Buffer.byteLength(body)});
    response.end(body);
  }).listen(port, '127.0.0.1');
}
