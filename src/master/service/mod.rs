//! interim
#![allow(missing_docs)]
use crate::config::MasterConfig; use crate::error::{Error, ErrorKind, Result}; use crate::master::raft::Handle; use crate::rpc::status::{to_status, from_detail};
use crate::runtime::Shutdown; use crate::master::state::query;
use jindofs_proto::v1::*; use jindofs_proto::store::v1 as st; use st::command::Command as Kind; use st::outcome::Outcome as Ans;
use tonic::{Request, Response, Status};
#[derive(Clone)] pub struct Ns(pub Handle);
fn s(e: Error) -> Status { to_status(&e) }
impl Ns {
    async fn put(&self, op: Option<OpId>, kind: Kind) -> Result<Ans, Status> {
        let out = self.0.propose(st::Command { op, command: Some(kind), time_ns: 0 }).await.map_err(s)?;
        match out.outcome { Some(Ans::Error(d)) => Err(s(from_detail(&d))), Some(a) => Ok(a), None => Err(s(Error::internal("none"))) }
    }
    async fn mutate(&self, op: Option<OpId>, kind: Kind) -> Result<Response<MutationResponse>, Status> {
        let attr = match self.put(op, kind).await? { Ans::Attr(a) => Some(a), _ => None };
        Ok(Response::new(MutationResponse { attr }))
    }
}
#[tonic::async_trait]
impl namespace_server::Namespace for Ns {
    async fn lookup(&self, r: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        let t = r.into_inner().target.unwrap_or_default();
        let store = self.0.read().await.map_err(s)?;
        let attr = query::lookup(&store.view(), &t).map_err(s)?;
        Ok(Response::new(LookupResponse { attr: Some(attr) }))
    }
    async fn list(&self, r: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let r = r.into_inner(); let t = r.target.unwrap_or_default();
        let store = self.0.read().await.map_err(s)?; let v = store.view();
        let ino = query::resolve(&v, &t).map_err(s)?;
        let lim = if r.limit == 0 { 1000 } else { (r.limit as usize).min(1000) };
        let (entries, end) = query::list(&v, ino, &r.after, lim).map_err(s)?;
        Ok(Response::new(ListResponse { entries, end, directory: Some(query::attr(&v, ino).map_err(s)?) }))
    }
    async fn create(&self, r: Request<CreateRequest>) -> Result<Response<MutationResponse>, Status> { let r = r.into_inner(); self.mutate(r.op.clone(), Kind::Create(r)).await } async fn mkdir(&self, r: Request<MkdirRequest>) -> Result<Response<MutationResponse>, Status> { let r = r.into_inner(); self.mutate(r.op.clone(), Kind::Mkdir(r)).await } async fn symlink(&self, r: Request<SymlinkRequest>) -> Result<Response<MutationResponse>, Status> { let r = r.into_inner(); self.mutate(r.op.clone(), Kind::Symlink(r)).await } async fn set_attr(&self, r: Request<SetAttrRequest>) -> Result<Response<MutationResponse>, Status> { let r = r.into_inner(); self.mutate(r.op.clone(), Kind::SetAttr(r)).await }
    async fn rename(&self, r: Request<RenameRequest>) -> Result<Response<MutationResponse>, Status> { let r = r.into_inner(); self.mutate(r.op.clone(), Kind::Rename(r)).await } async fn unlink(&self, r: Request<UnlinkRequest>) -> Result<Response<MutationResponse>, Status> { let r = r.into_inner(); self.mutate(r.op.clone(), Kind::Unlink(r)).await } async fn rmdir(&self, r: Request<RmdirRequest>) -> Result<Response<MutationResponse>, Status> { let r = r.into_inner(); self.mutate(r.op.clone(), Kind::Rmdir(r)).await }
    async fn batch(&self, r: Request<BatchRequest>) -> Result<Response<BatchResponse>, Status> {
        let r = r.into_inner(); match self.put(r.op.clone(), Kind::Batch(r)).await? { Ans::Batch(b) => Ok(Response::new(b)), _ => Err(s(Error::internal("batch"))) }
    }
    async fn add_mount(&self, _: Request<AddMountRequest>) -> Result<Response<MountResponse>, Status> { Err(s(Error::new(ErrorKind::Unsupported, "x"))) }
    async fn change_mount(&self, _: Request<ChangeMountRequest>) -> Result<Response<MountResponse>, Status> { Err(s(Error::new(ErrorKind::Unsupported, "x"))) }
    async fn remove_mount(&self, _: Request<RemoveMountRequest>) -> Result<Response<MountResponse>, Status> { Err(s(Error::new(ErrorKind::Unsupported, "x"))) }
    async fn list_mounts(&self, _: Request<ListMountsRequest>) -> Result<Response<ListMountsResponse>, Status> { Ok(Response::new(Default::default())) }
    async fn open_session(&self, r: Request<OpenSessionRequest>) -> Result<Response<OpenSessionResponse>, Status> {
        let r = r.into_inner(); self.put(None, Kind::OpenSession(st::OpenSession { client_id: r.client_id, description: r.description })).await?;
        Ok(Response::new(OpenSessionResponse { ttl_ms: 60000 }))
    }
    async fn renew_session(&self, _: Request<RenewSessionRequest>) -> Result<Response<RenewSessionResponse>, Status> { Ok(Response::new(Default::default())) }
    async fn close_session(&self, r: Request<CloseSessionRequest>) -> Result<Response<CloseSessionResponse>, Status> {
        self.put(None, Kind::CloseSession(st::CloseSession { client_id: r.into_inner().client_id })).await?; Ok(Response::new(Default::default()))
    }
}
#[tonic::async_trait]
impl admin_server::Admin for Ns {
    async fn provision(&self, r: Request<ProvisionRequest>) -> Result<Response<ProvisionResponse>, Status> {
        let u = r.into_inner().cluster_uuid; let id: [u8; 16] = u.as_ref().try_into().map_err(|_| s(Error::invalid("cluster_uuid must have 16 bytes")))?;
        let h = self.0.clone();
        let voters = tokio::spawn(async move { h.provision(id).await }).await.map_err(|e| s(Error::internal(e.to_string())))?.map_err(s)?;
        Ok(Response::new(ProvisionResponse { cluster_uuid: u, voters }))
    }
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> { Ok(Response::new(self.0.status())) }
    async fn digest(&self, r: Request<DigestRequest>) -> Result<Response<DigestResponse>, Status> {
        let i = r.into_inner().index; if i > 0 { self.0.wait_applied(i).await.map_err(s)?; }
        let store = self.0.store().ok_or_else(|| s(self.0.not_leader()))?;
        let d = tokio::task::spawn_blocking(move || store.digest()).await.map_err(|e| s(Error::internal(e.to_string())))?.map_err(|e| s(Error::internal(e.to_string())))?;
        Ok(Response::new(DigestResponse { member_id: self.0.member_id(), index: self.0.applied_index(), tables: d.tables.into_iter().map(|t| TableDigest { table: t.table.into(), rows: t.rows, checksum: t.checksum }).collect() }))
    }
    async fn transfer_leader(&self, r: Request<TransferLeaderRequest>) -> Result<Response<TransferLeaderResponse>, Status> {
        Ok(Response::new(TransferLeaderResponse { leader_id: self.0.transfer_leader(r.into_inner().target).await.map_err(s)? }))
    }
    async fn snapshot(&self, r: Request<SnapshotRequest>) -> Result<Response<SnapshotResponse>, Status> {
        let (index, purged) = self.0.snapshot(r.into_inner().purge).await.map_err(s)?; Ok(Response::new(SnapshotResponse { index, purged }))
    }
}
pub async fn serve(handle: Handle, config: MasterConfig, stop: Shutdown) -> Result<()> {
    let ns = Ns(handle);
    let addr: std::net::SocketAddr = format!("{}:{}", config.bind, config.grpc_port).parse().map_err(|_| Error::invalid("bind"))?;
    tonic::transport::Server::builder().tcp_nodelay(true)
        .add_service(namespace_server::NamespaceServer::new(ns.clone())).add_service(admin_server::AdminServer::new(ns))
        .serve_with_shutdown(addr, stop.cancelled_owned()).await.map_err(|e| Error::internal(e.to_string()))
}
